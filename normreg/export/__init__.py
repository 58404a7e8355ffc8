"""What becomes of exported programs elsewhere."""
