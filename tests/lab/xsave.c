/*
 * Lets the guest's kernel run on processors whose registers are larger than it has room for. Loaded before it
 * (LD_PRELOAD), in place of the C library's ptrace().
 *
 * User-Mode Linux keeps the registers of its processes in the layout of XSAVE, in 2696 bytes: all up to AVX-512 and
 * PKRU (arch/x86/um, Linux v6.1). Where the processor has more (AMX, say), the host's kernel gives as much as is
 * asked for, but takes back nothing that is not whole (xstateregs_set() in arch/x86/kernel/fpu/regset.c), and the
 * guest panics before its first instruction. So what the guest gives back is made whole here: what it had no room
 * for is in its initial state, which is what it is in a guest that has given nobody leave to use it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202
#define ROOM (64 << 10)
#define KNOWN_SIZE 2696   /* x87, SSE, AVX, MPX, AVX-512 and PKRU */
#define KNOWN_PARTS 0x3ff /* the same, as bits of XSTATE_BV */
#define XSTATE_BV 512     /* where that is: the first word of the header of XSAVE */

static long take_back(pid_t pid, void *type, struct iovec *given)
{
    static _Thread_local unsigned char whole[ROOM];
    struct iovec own = {whole, ROOM};

    if (given->iov_len != KNOWN_SIZE || syscall(SYS_ptrace, PTRACE_GETREGSET, pid, type, &own) ||
        own.iov_len <= KNOWN_SIZE)
        return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, type, given);

    uint64_t parts;
    memcpy(whole, given->iov_base, KNOWN_SIZE);
    memset(whole + KNOWN_SIZE, 0, own.iov_len - KNOWN_SIZE);
    memcpy(&parts, whole + XSTATE_BV, sizeof parts);
    parts &= KNOWN_PARTS;
    memcpy(whole + XSTATE_BV, &parts, sizeof parts);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, type, &own);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list more;
    va_start(more, request);
    pid_t pid = va_arg(more, pid_t);
    void *address = va_arg(more, void *);
    void *data = va_arg(more, void *);
    va_end(more);

    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
        return take_back(pid, address, data);
    if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
        return syscall(SYS_ptrace, request, pid, address, data);

    long word; /* the kernel stores what the C library returns */
    long status = syscall(SYS_ptrace, request, pid, address, &word);
    if (status < 0)
        return status;
    errno = 0;
    return word;
}
