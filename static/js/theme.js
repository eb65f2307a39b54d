// Theme before paint: the one blocking script. A signed-in person's choice comes with the page, a stranger's is local.
(() => {
  const root = document.documentElement;
  let theme = root.dataset.themeUser;
  try {
    if (theme) localStorage.setItem("theme", theme);
    else theme = localStorage.getItem("theme");
  } catch { /* storage is blocked: the system's theme */ }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  root.classList.add("js");
})();
