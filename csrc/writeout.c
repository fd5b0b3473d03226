/*
 * Writing files, for writers of images: see lazyrestore.h. Floor 1. No state; any thread.
 */
#include <fcntl.h>

#include "lazyrestore.h"

void lr_file_start_writing(int fd, uint64_t offset, uint64_t bytes)
{
	/* Pages that are being written already are left alone, and nothing is waited for. */
	(void)sync_file_range(fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
}
