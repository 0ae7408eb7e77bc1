"""A run: settings, data, the Trainer with the objective in it, its folder, and taking the result away."""
