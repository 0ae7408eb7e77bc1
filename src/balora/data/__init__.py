"""The data of a run: read and check it (`examples`), tokenize it (`tokenize`), batch it (`collate`)."""
