"""Files to batches: sources of labelled pictures, deterministic splits, a report, a LightningDataModule."""
