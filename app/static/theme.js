// Not a module, so that it runs before the page is first drawn: a theme chosen earlier must not flash in late.
try {
  const theme = localStorage.getItem("trimvit-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing follows the system.
}
