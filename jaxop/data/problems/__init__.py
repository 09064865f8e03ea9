"""Problems whose samples are generated from a seed."""
