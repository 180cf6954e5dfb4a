"""Makes a model: sources, loading, augmentation, the loop, calibration, report and export."""
