"""What a model meets in production: outlier score per image, records, evidence of drift."""
