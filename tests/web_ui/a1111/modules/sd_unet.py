"""A compiled UNet in the place of the checkpoint's own, which TensorRT's extension offers.

apply_unet   A1111 33
"""
current_unet = None


def apply_unet(option=None):
    global current_unet
    if option == "None":
        current_unet = None
