# jansson and PCRE2 for the library; libedit for the program; cmocka for the tests. Found by pkg-config.
find_package(PkgConfig REQUIRED)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.10)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8>=10.30)
pkg_check_modules(LIBEDIT IMPORTED_TARGET libedit)
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka)
