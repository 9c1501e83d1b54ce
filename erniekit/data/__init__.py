"""From files to batches: read -> render -> tokenise -> pack -> collate. No framework is needed."""
