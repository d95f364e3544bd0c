"""What rows are trained for: batches and outputs to losses and metrics."""
