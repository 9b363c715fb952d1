"""Groups of cells compared: differential expression and abundance."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import DifferentialAbundance, TestMode, abundance_ratio
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.abundance import groups_of_samples, sample_log_prob
from scvae_ext.models.cells import evaluating
from scvae_ext.models.compared_cells import GroupQuestion
from scvae_ext.models.differential_expression import (
    ChangeOptions,
    DifferentialMode,
    compare_groups,
    sorted_table,
    write_ranking,
)
from scvae_ext.models.groups import select_samples
from scvae_ext.models.mixins.group_comparison import GroupComparison
from scvae_ext.models.options import positive_number, true_or_false, whole_number
from scvae_ext.models.other_genes import fit_other_genes
from scvae_ext.models.posterior_draws import posterior_draws
from scvae_ext.models.query import CellSelection
from scvae_ext.models.results import require_names

__all__ = ["ComparisonMixin"]


class ComparisonMixin(GroupComparison):
    """Groups of cells compared: differential expression and abundance."""

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: CellSelection | str | None = None,
        idx2: CellSelection | str | None = None,
        mode: DifferentialMode = "change",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Sequence[str] | None = None,
        batchid2: Sequence[str] | None = None,
        fdr_target: float = 0.05,
        *,
        sample_key: str | None = None,
        layer: str | None = None,
        n_samples: int = 1,
        n_samples_overall: int = 500,
        test_mode: TestMode = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "rank_genes_groups",
    ) -> pd.DataFrame:
        r"""Find the genes that differ between groups of cells.

        In mode ``"change"`` the log2 fold change of the *mean* expression of two groups is inferred. The mean of a
        group is that of the model, :math:`\bar\rho^*`, times the ratio of observed to expected counts, so that a gene
        whose decoded expression differs only because cells differ in other genes is not taken to differ. Its error
        comes from the spread between cells, or with ``sample_key`` from the spread between samples: that of the
        posterior alone does not know of the model's error, and lists chosen by it hold many false discoveries. A prior
        that all genes share shrinks fold changes; genes are flagged so that the false discovery rate to be expected
        under the posterior is ``fdr_target``. For zero-inflated likelihoods the extra zeros count as part of the mean.

        Mode ``"vanilla"`` gives the probability that expression in a random cell of group one is above that in a
        random cell of group two. It describes cells and is no test of means; scvi-tools uses it by default.

        Parameters
        ----------
        adata, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        groupby
            Column of ``adata.obs`` with groups.
        group1
            One or several groups; all where ``None``, of which those with fewer than three cells are left out, or with
            ``sample_key`` two samples.
        group2
            Group to compare each of them with; all other cells where ``None``.
        idx1, idx2
            Cells in place of groups: positions, a mask, names, or a query of ``adata.obs`` as
            :meth:`pandas.DataFrame.query` takes it. Without ``idx2`` all other cells.
        mode
            ``"change"`` or ``"vanilla"``.
        delta
            Log2 fold change, up or down, above which a gene counts as different; 0 for any difference, which is what
            rank tests ask for. ``None`` takes 0.6 times the mean absolute fold change of the genes that differ under
            the fitted prior, and no less than 0.1.
        all_stats
            Whether to add means of the raw counts.
        batch_correction
            Whether to keep differences between batches out. Groups are compared within the batches that both have
            cells in, each batch weighing :math:`n_1 n_2/(n_1 + n_2)` with its numbers of cells of the two. Groups that
            share none are compared by what the model expects of all cells in the same batches, with a warning; with
            ``sample_key`` all are.
        batchid1, batchid2
            Batches to compare in; all where ``None``. They must name the same ones.
        fdr_target
            False discovery rate of the genes that are flagged.
        sample_key
            Column of ``adata.obs`` with the sample (donor, animal) of each cell. Samples then are the replicates: the
            result speaks of new samples rather than of new cells of the same ones. Samples with cells of both groups
            are compared within themselves. Two are needed at least; six or more make sense.
        layer
            Layer of ``adata`` (``"X"`` for ``adata.X``) whose other genes are compared as well, those that the model
            was not trained on. Their expression is a linear function of the decoder's hidden layer, fitted to their
            counts in this layer by one pass over the cells; depth stays that of the model's genes. ``None`` compares
            the model's genes alone.
        n_samples
            Draws of the posterior that the expression of a cell is averaged over; one is the mean of the posterior.
        n_samples_overall
            Cells drawn from each group in mode ``"vanilla"``; all pairs are compared.
        test_mode
            ``"three"``: the likelier of up and down; ``"two"``: both together.
        cred_interval_lvls
            Probabilities of credible intervals of the log2 fold change to add.
        seed
            Seed of draws.
        key_added
            Key of ``adata.uns`` for the structure of :func:`scanpy.tl.rank_genes_groups`, so that
            :func:`scanpy.get.rank_genes_groups_df` and scanpy's plots read it; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Genes of each comparison by descending probability, of equal ones (to six places) by descending
            ``lfc_mean / lfc_std``, with columns named as in scvi-tools: ``proba_de``,
            ``proba_not_de``, ``bayes_factor`` (natural logarithm of the odds), ``scale1`` and ``scale2`` (mean
            expression per unit of depth), ``delta``, ``lfc_mean``, ``lfc_median``, ``lfc_std`` (posterior of the log2
            fold change of group one over group two), ``lfc_min`` and ``lfc_max`` (ends of its central 99.9%),
            ``expected_fdr`` (of the list down to this gene), ``raw_mean1`` and ``raw_mean2`` (counts a cell),
            ``non_zeros_proportion1``, ``raw_normalized_mean1`` (counts per 10,000), ``is_de_fdr_0.05``,
            ``comparison``, ``group1``, ``group2``. Mode ``"vanilla"``: ``proba_m1``, ``proba_m2`` in place of the
            first and of the fold changes.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If a column, a group, a batch or cells do not exist, groups overlap, or one that was asked for has fewer
            than three cells (or, with ``sample_key``, two samples); the message lists what exists.

        Warns
        -----
        UserWarning
            If groups are left out, which it names, samples have cells of one group only, or with ``batch_correction``
            groups share no batch.
        """
        self._require_free("uns", key_added)
        adata, cells = self._cells(adata, None, batch_size, fill_missing_genes)
        cells.source.require_counts(self._options["gene_likelihood"])
        options = ChangeOptions(
            mode,
            delta,
            fdr_target,
            test_mode,
            () if cred_interval_lvls is None else tuple(cred_interval_lvls),
            self._batches_to_compare(batch_correction, batchid1, batchid2),
            true_or_false("all_stats", all_stats),
            idx1 is None and group1 is None,
            whole_number("n_samples", n_samples),
            whole_number("n_samples_overall", n_samples_overall),
            whole_number("seed", seed, least=0),
        )
        if sample_key is not None and mode == "vanilla":
            raise ValueError('sample_key has no meaning in mode="vanilla", which compares cells: use mode="change".')
        asked = GroupQuestion(groupby, group1, group2, idx1, idx2, sample_key, key_added is not None)
        within = cells.source.batch.numpy() if options.batches and mode == "change" else None
        groups, units = asked.units(in_pandas(adata.obs), batch=within)
        names = list(self.registry.var_names)
        with evaluating(self.module):
            others = None
            if layer is not None:
                others = fit_other_genes(self.module, cells, adata, layer, self.registry.var_names)
                names += others.names
            draw = partial(posterior_draws, self.module, others=others)
            tables = compare_groups(draw, len(names), cells, groups, units, options)
        tables = {group: table.set_axis(names) for group, table in tables.items()}
        if key_added is not None:
            arguments = self._asked(asked, options, tables) | {"mode": mode, "layer": layer}
            write_ranking(adata, key_added, tables, self._provenance(arguments))
        return sorted_table(tables)

    def differential_abundance(
        self,
        adata: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int | None = None,
        num_cells_posterior: int | None = None,
        *,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        group1: str | None = None,
        group2: str | None = None,
        bandwidth: float = 1.0,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_abundance",
        write_subset: bool = False,
    ) -> DifferentialAbundance:
        r"""Ask in which samples the state of each cell is frequent, and whether it is more so in a group of samples.

        .. math:: \log \int q(z \mid x_n)\, q_s(z)\, dz, \qquad q_s(z) = \frac1{N_s} \sum_{m \in s} q(z \mid x_m)

        with the cell itself left out of its own sample's aggregated posterior. Averaging over the cell's posterior, and
        not at its mean as in scvi-tools, about doubles the variance of the kernel, in which more cells take part. With
        ``groupby`` the ratio of two groups of samples follows (:func:`~scvae_ext.analysis.abundance_ratio`), whose
        standard error is that between samples. Shares of a sample sum to one: where a type is more frequent by a
        factor, all others are less frequent.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`. Densities are made of all cells of ``adata``.
        sample_key
            Column of ``adata.obs`` with the sample (donor, animal) of each cell.
        num_cells_posterior
            Cells of a sample that its density is made of, drawn at random where it has more; all where ``None``. Time
            grows with cells times these cells.
        groupby
            Column of ``adata.obs`` with a group of each sample, as a condition is.
        group1, group2
            Group, and the one to compare it with; all other samples where ``None``.
        bandwidth
            Factor on the standard deviations of the kernel. More than one smooths: less noise, and a ratio closer to
            zero where states of different frequency are neighbours.
        seed
            Of the draw of cells.
        key_added
            Key of ``adata.obsm`` for the log densities (a data frame), and of ``adata.obs``, with ``_log_ratio`` and
            ``_error`` appended; ``None`` writes nothing.

        Returns
        -------
        DifferentialAbundance
            Log density of cells in samples, in nats of the latent space, and log ratio (natural) with its standard
            error. Not a number: the error where a group has one sample. Minus infinity: where a sample has no other
            cell.

        Raises
        ------
        ValueError
            If a column or a group does not exist, or a sample has several groups; the message lists what exists.
        """
        self._require_free("obsm", key_added)
        self._require_free("obs", key_added, "_log_ratio", "_error")
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        if sample_key is None:
            listed = ", ".join(map(repr, adata.obs.columns))
            raise ValueError(f"sample_key is missing: name the column of adata.obs with the samples ({listed}).")
        obs = in_pandas(adata.obs)
        codes, names = select_samples(obs, sample_key)
        if key_added is not None:
            require_names(names, f"a sample of adata.obs[{sample_key!r}]")
        compared = None
        if groupby is not None:
            compared = groups_of_samples(obs, codes, names, groupby, group1, group2)
        elif group1 is not None or group2 is not None:
            raise ValueError("group1 and group2 need groupby=..., the column of adata.obs that they are groups of.")
        most = None if num_cells_posterior is None else whole_number("num_cells_posterior", num_cells_posterior)
        bandwidth, seed = positive_number("bandwidth", bandwidth), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            log_prob, n_cells, sizes = sample_log_prob(self.module, cells, codes, names, most, bandwidth, seed)
        ratio = None if compared is None else abundance_ratio(log_prob, n_cells, *compared)
        record = {"sample_key": sample_key, "num_cells_posterior": most, "bandwidth": bandwidth, "seed": seed}
        self._write(adata, "obsm", key_added, log_prob, cells, write_subset, record, names)
        if ratio is not None:
            record |= {"groupby": groupby, "group1": ratio.group1, "group2": ratio.group2}
            columns = {"log_ratio": ratio.log_ratio, "error": ratio.standard_error}
            self._write_columns(adata, key_added, columns, cells, write_subset, record)
        obs_names = cells.source.obs_names[cells.positions]
        return DifferentialAbundance(pd.DataFrame(log_prob, index=obs_names, columns=list(names)), sizes, ratio)
