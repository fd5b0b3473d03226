/* libFuzzer's harness: see README.md. */
#include "bounds.h"
#include "hostile.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	bounds_init();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	bounds_begin();
	hostile_read(data, bytes);
	bounds_end();
	return 0;
}
