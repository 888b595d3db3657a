"""From pictures with captions to records, and from records to the encoded set."""
