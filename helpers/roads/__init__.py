"""Roads: drawn traffic, videos in and out, vehicles followed, rules applied; see helpers.detect."""
