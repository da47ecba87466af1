"""The rooms behind the training loop: batches, augmentation, prediction, engine, checkpoints, results of methods, norms over several processes."""
