"""What stage three found, as one HTML page: its tables, plots and pictures, and the page around them."""
