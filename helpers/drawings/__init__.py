"""The drawn images' brushes and motifs; helpers.draw makes data sets of them."""
