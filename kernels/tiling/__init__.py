"""Every tile, warp count and number of programs, with its reason.

Numbers are formulas of the shape and the device, so that a result depends on neither timing nor
tuning. A forward tile depends on the row's width alone: a row's result does not depend on how many
other rows there are. Figures quoted are registers a thread from code compiled for sm_90.
"""

from normreg.kernels.tiling import channels as channels
from normreg.kernels.tiling import elements as elements
from normreg.kernels.tiling import groups as groups
from normreg.kernels.tiling import hardware as hardware
from normreg.kernels.tiling import heads as heads
from normreg.kernels.tiling import modulated as modulated
from normreg.kernels.tiling import partials as partials
from normreg.kernels.tiling import rows as rows
