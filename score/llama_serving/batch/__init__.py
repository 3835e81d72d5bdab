"""Files of rows in, one JSON record a row out."""
