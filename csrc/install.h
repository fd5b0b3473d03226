/*
 * Putting pages in place: UFFDIO_COPY, ZEROPAGE and POISON over a run of addresses, whatever of it
 * is there already. Floor 4, used by the loader only, under its rules.
 */
#ifndef LR_INSTALL_H
#define LR_INSTALL_H

#include "target.h"

enum lr_install_kind { LR_INSTALL_COPY, LR_INSTALL_ZEROPAGE, LR_INSTALL_POISON };

/* Not an error, and never returned by a public function: there are messages to be read first. */
#define LR_LATER (-1000)

struct lr_installed {
	uint64_t bytes; /* dealt with, from the start: installed, or found to be there or gone */
	uint64_t pages; /* installed */
	int os_error;
};

/*
 * Install `bytes` (whole host pages) at `to`, for a COPY from `from`. Pages that are present stay
 * as they are and their waiters are woken; pages that are no longer mapped, or no longer
 * registered, are passed over and woken too. A zero page over a fence heals it. While a target is
 * being mapped, it ends at the first page that is not there: with LR_OK, and not dealt with.
 *
 * Returns LR_OK, or how it stopped after ret_installed->bytes: LR_LATER (a message waits: somebody
 * gave memory up or moves it), LR_ERR_NOMEM, LR_ERR_GONE (the address space is gone),
 * LR_ERR_SYSTEM with the os_error.
 */
int lr_install(struct lr_target *target, enum lr_install_kind kind, uint64_t to,
	       const uint8_t *from, uint64_t bytes, struct lr_installed *ret_installed);

/* Zeros for a page that was settled and is missing, and for as many of the `bytes` behind it as are
 * missing in a row. */
int lr_install_zeros(struct lr_target *target, uint64_t to, uint64_t bytes,
		     struct lr_installed *ret_installed);

/* Fence a run that is missing: POISON, else no access. 1 poisoned, 2 no access, LR_LATER, or
 * LR_ERR_NOMEM where neither could be done now. `piece` is where it lies. A peer's memory can only
 * be poisoned: 0 where it cannot, and then nobody who waits there is waked; LR_ERR_GONE. */
int lr_install_fence(struct lr_target *target, const struct lr_piece *piece, uint64_t to,
		     uint64_t bytes);

#endif
