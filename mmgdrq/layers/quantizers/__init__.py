"""The quantizers of a layer, and the state that those of a model share."""
