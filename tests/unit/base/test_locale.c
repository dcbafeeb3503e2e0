/* test_locale.c - a program whose locale writes 1,5 gets 1.5 in texts all the same, and keeps its locale. Skipped where no such locale is installed. */
#include "base/base.h"
#include <locale.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

static void numbers_have_points(void **state)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8", "de_DE", "ru_RU.UTF-8", "pt_BR.UTF-8"};
    (void)state;
    const char *found = NULL;
    for (size_t i = 0; !found && i < sizeof names / sizeof names[0]; i++) found = setlocale(LC_ALL, names[i]);
    if (!found) skip();
    char own[16];
    snprintf(own, sizeof own, "%.1f", 1.5);
    assert_string_equal(own, "1,5");
    setun_string s = {0};
    setun_string_printf(&s, "%.2f %.9g %d", 1.25, 1e-5, 7);
    assert_false(s.failed);
    assert_string_equal(s.data, "1.25 1e-05 7");
    setun_string_clear(&s);
    snprintf(own, sizeof own, "%.1f", 1.5);
    assert_string_equal(own, "1,5");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(numbers_have_points)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
