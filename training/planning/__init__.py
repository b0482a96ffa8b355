"""What a training run takes, told before anything is loaded or rented."""
