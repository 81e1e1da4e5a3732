"""Grid files: YAML, value forms, keys, search spaces, overrides, schema; the validated grid."""
