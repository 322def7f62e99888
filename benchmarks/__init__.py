"""Scripts that produce the tables of docs/, with code that the tests share."""
