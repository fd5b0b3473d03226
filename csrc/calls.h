/*
 * System calls that only newer C libraries have functions for. Floor 1; any thread; owns nothing.
 * Made by number, one library runs with every glibc from 2.17 on; the kernel decides what it knows.
 */
#ifndef LR_CALLS_H
#define LR_CALLS_H

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1u
#endif

static inline ssize_t lr_calls_preadv2(int fd, const struct iovec *to, int count, off_t offset,
				       int flags)
{
	/* The kernel has the offset in two halves, and 64-bit ones need the first alone. */
	return syscall(SYS_preadv2, fd, to, (long)count, (long)offset, 0l, flags);
}

static inline int lr_calls_mlock2(const void *memory, size_t bytes, unsigned flags)
{
	return (int)syscall(SYS_mlock2, memory, bytes, flags);
}

#endif
