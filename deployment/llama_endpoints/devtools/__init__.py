"""What only the development of this project needs."""
