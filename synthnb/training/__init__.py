"""The rooms behind the training loop: batches, augmentation, prediction, engine, checkpoints, norms over several processes."""
