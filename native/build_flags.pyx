"""What this build was compiled with, read back from the binary itself so that it cannot be out of date."""

cdef extern from *:
    """
    #ifdef __SANITIZE_ADDRESS__
    #define TB_SANITIZED 1
    #else
    #define TB_SANITIZED 0
    #endif
    #if defined(__clang__)
    #define TB_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define TB_COMPILER "gcc " __VERSION__
    #else
    #define TB_COMPILER "unknown"
    #endif
    """
    const char* TAILORBIRD_BUILD_FLAGS
    const char* TB_COMPILER
    int TB_SANITIZED


def compiler() -> str:
    """Return the compiler's name and version."""
    return TB_COMPILER.decode("utf-8")


def flags() -> str:
    """Return the flags the build added to the interpreter's own, separated by spaces."""
    return TAILORBIRD_BUILD_FLAGS.decode("utf-8")


def sanitized() -> bool:
    """Tell whether the address sanitizer is compiled in."""
    return TB_SANITIZED != 0
