/* What the library says of itself. */
#include "lazyrestore.h"
#include "zstd_dl.h"

const char *lr_version(void)
{
	return LR_VERSION;
}

const char *lr_header_hash(void)
{
	return LR_HEADER_HASH;
}

int lr_init(void)
{
	return lr_zstd_load();
}
