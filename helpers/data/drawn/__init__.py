"""The drawn images' brushes and motifs; sets.py makes data sets of them."""
