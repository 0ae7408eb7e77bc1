"""Local files, folders and hub data sets read into tables of rows."""
