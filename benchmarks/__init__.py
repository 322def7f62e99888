"""Scripts that make the tables of docs/, and what they share with the tests."""
