/*
 * Putting pages in place: UFFDIO_COPY, ZEROPAGE and POISON over a run, whatever of it is there
 * already. Floor 4, used by the loader only, under its rules.
 */
#ifndef LR_INSTALL_H
#define LR_INSTALL_H

#include "target.h"

enum lr_install_kind { LR_INSTALL_COPY, LR_INSTALL_ZEROPAGE, LR_INSTALL_POISON };

/*
 * Install `bytes` (whole host pages) at `to`, for a COPY from `from`. Pages that are present stay
 * as they are and their waiters are woken; pages that are no longer mapped, or no longer
 * registered, are passed over and woken too. Adds the pages installed to *pages.
 *
 * Where the kernel has no memory, a demand load tries until it has, because somebody waits for the
 * page; others give up with LR_ERR_NOMEM. Returns 0, or LR_ERR_GONE (the address space is gone),
 * LR_ERR_CLOSED (the range was suspended meanwhile), LR_ERR_SYSTEM with *ret_os_error.
 */
int lr_install(const struct lr_target *target, const struct lr_range *range,
	       enum lr_install_kind kind, bool is_demand, uint64_t to, const uint8_t *from,
	       uint64_t bytes, uint64_t *pages, int *ret_os_error);

/* Fence a run: POISON, else no access. 1 poisoned, 2 no access, 0 neither worked. */
int lr_install_fence(const struct lr_target *target, const struct lr_range *range, uint64_t to,
		     uint64_t bytes);

#endif
