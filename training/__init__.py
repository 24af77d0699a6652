"""What only training needs: the data set, batches, augmentation, callbacks."""
