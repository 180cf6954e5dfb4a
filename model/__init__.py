"""Ground floor: what a trained model is. Imported by every other package, imports none of them."""
