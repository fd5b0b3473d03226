/*
 * CRC32C (Castagnoli), the checksum of all that is stored. Floor 1. No state; any thread.
 * lr_crc32c() itself is in lazyrestore.h: crc is 0 at first, and what was returned to go on.
 */
#ifndef LR_CRC32C_H
#define LR_CRC32C_H

#include "lazyrestore.h"

/* The table-driven way, which every machine has; here so that a test can compare it with the
 * machine's own. */
uint32_t lr_crc32c_by_table(uint32_t crc, const void *data, uint64_t bytes);

#endif
