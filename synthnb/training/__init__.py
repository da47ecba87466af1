"""The rooms behind the training loop: batches, augmentation, prediction, engine, checkpoints, results, norms."""
