#include "abort.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The image's path as the kernel knows it: nothing of the caller's need be there still. */
static void find_path(const struct lr_image *image, char *ret_path, size_t room)
{
	char link[48];
	ssize_t got;

	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", image->source.fd);
	got = readlink(link, ret_path, room - 1);
	if (got < 0)
		got = 0;
	ret_path[got] = '\0';
}

void lr_abort(const struct lr_image *image, const struct lr_region_info *region,
	      const struct lr_load_error *error)
{
	char path[512], message[1536];
	int name_bytes = region->name_bytes < 256 ? (int)region->name_bytes : 256;
	int length, fd;

	find_path(image, path, sizeof(path));
	length = snprintf(message, sizeof(message),
			  "lazyrestore: %s: region '%.*s', cluster %llu (offset %llu): %s%s%s;"
			  " on_error is abort, so the process ends here\n",
			  path[0] ? path : "image", name_bytes, region->name,
			  (unsigned long long)error->cluster, (unsigned long long)error->offset,
			  lr_strerror(error->code), error->os_error ? ": " : "",
			  error->os_error ? strerror(error->os_error) : "");
	/* Not by stdio: another thread may hold its lock, and wait for the page. The pager's own
	 * table of descriptors does not have the program's standard error. */
	fd = fcntl(STDERR_FILENO, F_GETFD) < 0 ? open("/proc/self/fd/2", O_WRONLY | O_CLOEXEC)
					       : STDERR_FILENO;
	if (fd >= 0 && length > 0 && write(fd, message, strnlen(message, sizeof(message))) < 0)
		abort();
	abort();
}
