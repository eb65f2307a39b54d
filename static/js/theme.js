// Theme before paint: the one blocking script. The account's theme comes with the page; it wins when it was changed
// elsewhere, else what was last chosen in this browser does (its way to the server may still be going on).
(() => {
  const root = document.documentElement;
  const server = root.dataset.themeUser;
  let theme = server;
  try {
    if (server && server !== localStorage.getItem("theme-server")) {
      localStorage.setItem("theme-server", server);
      localStorage.setItem("theme", server);
    }
    theme = localStorage.getItem("theme") ?? server;
  } catch { /* storage is blocked: the account's theme, else the system's */ }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  else delete root.dataset.theme;
  root.classList.add("js");
})();
