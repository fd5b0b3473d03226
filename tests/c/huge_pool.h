/*
 * HUGE_MAIN lets this machine make huge pages while the cases run (the sysctl
 * vm.nr_overcommit_hugepages, which has its value back afterwards): they exist only as long as
 * somebody has them mapped. Include after check.h.
 */
#ifndef LR_HUGE_POOL_H
#define LR_HUGE_POOL_H

#include <fcntl.h>

#define HUGE            (2ull << 20)
#define HUGE_PAGES_MAX  24
#define HUGE_OVERCOMMIT "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"

static inline long huge_overcommit(long wanted)
{
	char text[32] = "";
	int fd = open(HUGE_OVERCOMMIT, wanted < 0 ? O_RDONLY : O_WRONLY);
	ssize_t got = -1;

	if (fd < 0)
		return -1;
	if (wanted < 0)
		got = read(fd, text, sizeof(text) - 1);
	else
		got = write(fd, text, (size_t)snprintf(text, sizeof(text), "%ld", wanted));
	close(fd);
	return got < 0 ? -1 : atol(text);
}

#define HUGE_MAIN(cases)                                                                           \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		long before = huge_overcommit(-1);                                                 \
		int status;                                                                        \
                                                                                                   \
		huge_overcommit(HUGE_PAGES_MAX);                                                   \
		status = check_main(argc, argv, cases, sizeof(cases) / sizeof((cases)[0]));        \
		if (before >= 0)                                                                   \
			huge_overcommit(before);                                                   \
		return status;                                                                     \
	}

#endif
