"""Mathematics that has never heard of a network.

- `gaussian`: averages of one and two Gaussian variables, exact at kinks;
- `singular_values`: dense spectra, values only;
- `log_spectrum`: every singular value of a product of thousands of matrices;
- `spectra`: condition, rank, volume and isometry of a spectrum in logarithms;
- `krylov`: spectra of linear maps that are known only by what they do to a vector;
- `lanczos`: the recurrence that shows a symmetric map as one vector sees it;
- `norms`: norms of pytrees that neither underflow nor overflow;
- `scaling`: power laws with the standard error of the exponent;
- `intervals`: rigorous bounds on a traced program over a box;
- `sup_norm`: a certified bracket of the largest size of a function over a box;
- `simplex_sup`: a certified bracket for piecewise linear functions, by simplices;
- `results`: the NamedTuples that theory and measurement both return.
"""

from . import (  # noqa: F401
    gaussian,
    intervals,
    krylov,
    lanczos,
    log_spectrum,
    norms,
    results,
    scaling,
    simplex_sup,
    singular_values,
    spectra,
    sup_norm,
)
