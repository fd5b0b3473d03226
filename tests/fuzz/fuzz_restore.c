/* libFuzzer's harness: see README.md. */
#include <stdio.h>
#include <stdlib.h>

#include "bounds.h"
#include "hostile.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	if (!hostile_can_restore()) {
		fputs("no userfaultfd that serves system calls too\n", stderr);
		exit(77);
	}
	bounds_init();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	bounds_begin();
	hostile_restore(data, bytes);
	bounds_end();
	return 0;
}
