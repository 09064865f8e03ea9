"""Files of samples: opened, understood and written."""
