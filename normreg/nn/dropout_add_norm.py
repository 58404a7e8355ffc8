import torch

from normreg import functional


class _DropoutAddNorm:
    """A norm of torch.nn behind dropout and the sum with a residual, in the norm's launches.

    Args:
        normalized_shape, ...: those of the norm, whose state_dict this has as well, by position.
        p: probability of zero, in [0, 1].
        prenorm: return the sum as well, the residual of the next block.
        residual_in_fp32: the sum is float32 beside 16 bits.
        layer_scale: the first value of a parameter that multiplies the branch; None for no such parameter.

    `forward` takes the branch, the residual or None for 0, and row_scale, which multiplies rows or samples.

    Equivalent::

        z = residual + dropout(x) * row_scale[:, None] * layer_scale
        y = norm(z)    # with prenorm: y, z
    """

    def __init__(self, *arguments, p=0.0, prenorm=False, residual_in_fp32=False, layer_scale=None, **options):
        super().__init__(*arguments, **options)
        self.p = torch.nn.Dropout(p).p  # which judges it
        self.prenorm, self.residual_in_fp32, self.initial_layer_scale = prenorm, residual_in_fp32, layer_scale
        value = None
        if layer_scale is not None:
            like = dict(device=options.get("device"), dtype=options.get("dtype"))
            value = torch.nn.Parameter(torch.full(self.normalized_shape, float(layer_scale), **like))
        self.register_parameter("layer_scale", value)

    def reset_parameters(self):
        super().reset_parameters()
        if getattr(self, "layer_scale", None) is not None:
            torch.nn.init.constant_(self.layer_scale, self.initial_layer_scale)

    def _options(self, row_scale):
        return dict(
            p=self.p, training=self.training, eps=self.eps, prenorm=self.prenorm,
            residual_in_fp32=self.residual_in_fp32, row_scale=row_scale, layer_scale=self.layer_scale,
        )  # fmt: skip

    def extra_repr(self):
        words = [super().extra_repr(), f"p={self.p}"]
        words += [f"{name}=True" for name in ("prenorm", "residual_in_fp32") if getattr(self, name)]
        if self.layer_scale is not None:
            words.append(f"layer_scale={self.initial_layer_scale}")
        return ", ".join(words)


class DropoutAddLayerNorm(_DropoutAddNorm, torch.nn.LayerNorm):
    __doc__ = f"`normreg.functional.dropout_add_layer_norm`. {_DropoutAddNorm.__doc__}"

    def forward(self, input, residual=None, row_scale=None):
        parameters = self.normalized_shape, self.weight, self.bias
        options = self._options(row_scale)
        return functional.dropout_add_layer_norm(input, residual, *parameters, **options)


class DropoutAddRMSNorm(_DropoutAddNorm, torch.nn.RMSNorm):
    __doc__ = f"`normreg.functional.dropout_add_rms_norm`. {_DropoutAddNorm.__doc__}"

    def forward(self, input, residual=None, row_scale=None):
        parameters = self.normalized_shape, self.weight
        options = self._options(row_scale)
        return functional.dropout_add_rms_norm(input, residual, *parameters, **options)
