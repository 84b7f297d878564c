"""Which weeks of a log differ from those a bundle was made from: weekly figures, their own thresholds, words."""
