// The folds of a page: a button opens all code, and a link or a search leads into a closed fold.
(() => {
const main = document.querySelector('main');
const folds = [...main.querySelectorAll('details.code-fold')];
const button = document.createElement('button');
const allOpen = () => folds.every(fold => fold.open);
const open = e => { for (; e; e = e.parentElement.closest('details')) e.open = true; };

const say = () => { button.textContent = allOpen() ? 'Hide all code' : 'Show all code'; };
button.type = 'button';
button.className = 'fold-all';
button.addEventListener('click', () => { const all = !allOpen(); folds.forEach(fold => { fold.open = all; }); });
folds.forEach(fold => fold.addEventListener('toggle', say));
say();
(main.querySelector('#title-block-header') || main).append(button);

function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target?.closest('details')) return;
  open(target.closest('details'));
  target.scrollIntoView();
}
addEventListener('hashchange', arrive);
arrive();

const sought = new URLSearchParams(location.search).get('q')?.toLowerCase();   // Quarto's search names what it found
if (sought) folds.filter(fold => fold.textContent.toLowerCase().includes(sought)).forEach(open);
})();
