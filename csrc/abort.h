/*
 * The end of a process whose owner would rather have none than one with pages that cannot be
 * loaded: LR_ON_ERROR_ABORT. Floor 4.
 */
#ifndef LR_ABORT_H
#define LR_ABORT_H

#include "image.h"

_Noreturn void lr_abort(const struct lr_image *image, const struct lr_region_info *region,
			const struct lr_load_error *error);

#endif
