"""Any `f(params, x)` in, arrays out. Holds no closed form."""
